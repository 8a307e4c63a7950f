# The Wolf-scale run file with tiny random models: every stage in seconds, no download, no sense in its text.
tiny='{model_type: gpt_neox, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2}'
ostinato run docs/run-files/wolf.yaml --out runs/wolf-tiny \
  --set "policy.random=$tiny" --set policy.tokenizer=bytes \
  --set "reward_model.random=$tiny" --set reward_model.tokenizer=bytes \
  --set "gold.random=$tiny" --set gold.tokenizer=bytes \
  --set sft.data=docs/run-files/tiny.jsonl --set prompts.data=docs/run-files/tiny.jsonl \
  --set prompts.shares='{preference: 0.5, rl: 0.25, evaluation: 0.25}' \
  --set prompts.preference=16 --set prompts.held_out=4 --set prompts.evaluation=8 \
  --set iterations=2 --set sft.epochs=1 --set reward_model.epochs=1 --set generation.max_new_tokens=16 \
  --set rl.rollouts=2 --set rl.rollout_size=16 --set rl.minibatch=8 --set rl.epochs=2 --set evaluation.every=2 \
  --set backend.threads=1
