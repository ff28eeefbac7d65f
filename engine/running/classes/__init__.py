"""Classes that come and go while a model learns."""
