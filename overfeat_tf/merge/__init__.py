"""From the windows' boxes to objects: match score, greedy accumulation (4.3), calibration."""
