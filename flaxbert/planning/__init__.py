"""What a training step would cost on devices that are not there: memory, work, traffic and time, from the compiled program."""
