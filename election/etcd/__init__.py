"""Knows etcd's v3 API and nothing of elections."""
