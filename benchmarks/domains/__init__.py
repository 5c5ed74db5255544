"""Two evaluation domains made for this project: source code and a clinic's manual."""
