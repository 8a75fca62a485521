"""What ctloss.train and ctloss.evaluate have in common; neither knows the other. Nothing here is public."""
