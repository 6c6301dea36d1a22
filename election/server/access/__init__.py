"""Who may call what: callers' identities, the policy that gives them roles, their limits, and what they have done."""
