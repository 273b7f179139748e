"""The parts behind the commands of `experiments/`, one folder for each study."""
