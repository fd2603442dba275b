"""Texts and token ids of preference rows as TRL and transformers make them; run by preferences.test.ts.

    check_preferences.py TOKENIZER_FOLDER ROWS.jsonl

Rows have chosen and rejected, and prompt or not, as messages or as text. Prints a JSON list: of each row the texts and
ids of both answers with their prompt, as TRL's RewardTrainer has them.
"""

import json
import sys

from transformers import AutoTokenizer
from trl.data_utils import apply_chat_template, is_conversational


def main(folder, path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    result = []
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    for row in rows:
        if is_conversational(row):
            text = apply_chat_template(row, tokenizer)
            prompt = text.get("prompt", "")
            texts = [prompt + text["chosen"], prompt + text["rejected"]]
        else:
            whole = [row.get("prompt", "") + row["chosen"], row.get("prompt", "") + row["rejected"]]
            eos = tokenizer.eos_token
            texts = [text if text.endswith(eos) else text + eos for text in whole]
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        result.append({"texts": texts, "ids": ids})
    print(json.dumps(result))


main(sys.argv[1], sys.argv[2])
