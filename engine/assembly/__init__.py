"""From tables of a pipeline file to components, each made when it is first asked for."""
