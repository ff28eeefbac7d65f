"""Versions of a model: a folder of them, publishing while learning, swapping while serving."""
