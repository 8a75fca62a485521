"""What a run trains: the CCE encoder and its objective."""
