"""Where a network looked: maps in the study's own geometry, and curves along its slices."""
