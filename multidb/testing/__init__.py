"""What a test suite needs around multidb: servers, fakes, faults and conformance suites."""
