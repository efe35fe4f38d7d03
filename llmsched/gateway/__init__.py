"""The REST gateway: the contract of `/v1`, problem documents, streams and metrics."""
