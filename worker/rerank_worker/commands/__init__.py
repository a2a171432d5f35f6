"""What the command line does besides serving: measuring (tune) and scoring files (score)."""
