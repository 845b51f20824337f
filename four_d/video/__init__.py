"""Reading of users' videos: files, folders and arrays to frames with times, resized to a model's input."""
