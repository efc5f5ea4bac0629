"""Drafters: everything that proposes future image tokens; one file for each source of drafts."""
