"""Champion and challenger: when the error rises, a new model learns beside the current one."""
