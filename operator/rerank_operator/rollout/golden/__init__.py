"""The golden set: queries whose right answers are known, and how well a model ranks them."""
