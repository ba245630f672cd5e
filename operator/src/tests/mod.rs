//! Tests of whole plans, on a small cluster that does what a plan says.

mod allocator;
mod analyzer;
mod cluster;
mod fields;
mod gitops;
mod heat;
mod in_place;
mod ingestion_changes;
mod ingestion_events;
mod ingestions;
mod migration;
mod nodes;
mod ollama_pools;
mod order_of_events;
mod overdue;
mod placing;
mod restarts;
mod rollout;
mod settled;
mod stops;
mod templates;
mod turns;
