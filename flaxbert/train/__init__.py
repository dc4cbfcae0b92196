"""Training: losses, schedules, optimizers, the state, the step and the memory it needs."""
