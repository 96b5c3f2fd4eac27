"""Generated from proto/inference.proto by `make proto`. Do not edit."""
