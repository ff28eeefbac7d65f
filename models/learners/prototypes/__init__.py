"""The learner of prototypes: a mean per class, in an embedding that does not learn."""
