"""What ctloss.train and ctloss.evaluate share; neither imports the other. Internal: nothing here is public."""
