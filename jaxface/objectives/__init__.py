"""What training minimises: the loss of a task, and how the losses of several become one."""
