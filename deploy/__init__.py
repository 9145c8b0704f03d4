"""Everything needed to run, train and ship Darkroom."""
