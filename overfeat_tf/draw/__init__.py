"""Pictures of answers, and of the stages that led to them (Fig. 6 and 7)."""
