//! Tests of whole plans, on a small cluster that does what a plan says.

mod cluster;
mod gitops;
mod migration;
mod ollama_pools;
mod order_of_events;
mod placing;
mod rollout;
