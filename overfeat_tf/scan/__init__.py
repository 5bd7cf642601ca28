"""From an image to scores and boxes of every window: the image pyramid, the dense scan, voting, features."""
