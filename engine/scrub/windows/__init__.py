"""The stage `window`: what a row's key did before it."""
