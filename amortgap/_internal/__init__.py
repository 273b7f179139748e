"""What the package keeps to itself: checks of arguments, devices, files and progress."""
