"""What an evaluation shows beside its figures: curves, confusions, mistakes as pictures, all in one folder."""
