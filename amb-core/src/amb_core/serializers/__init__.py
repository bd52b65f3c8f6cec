"""The serializers that come with AMB, one module each."""
