select number from format
