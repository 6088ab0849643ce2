"""Files to arrays: images, sound and video as the model's towers read them, without model code."""
