"""Pages for people, JSON, SARIF and JUnit for machines, a table for the terminal: of audits and of studies."""
