"""toast_loss and linear_toast_loss where the ranks of a process group have a slice of the classes each."""
