"""The one door to ONNX Runtime: settings, sessions, execution providers. Nothing else imports it."""
