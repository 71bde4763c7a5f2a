"""Makes the packages beside this file (kubernetes_fixture) importable for all tests."""
