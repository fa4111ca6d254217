"""The steps from an image file to the model's input, on the host and on the device."""
