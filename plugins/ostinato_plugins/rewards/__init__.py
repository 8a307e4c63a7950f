"""What happens to rewards before the policy is optimised on them."""
