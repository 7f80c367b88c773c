"""Lightning glue: training and evaluation loops, logging, command lines. No mathematics."""
