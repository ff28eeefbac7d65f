"""Any module of torch as a learner."""
