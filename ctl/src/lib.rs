//! Host client of the agent.
