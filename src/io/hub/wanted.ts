import { ROW_FILES } from "../row-file.ts";
import type { Include } from "./download.ts";

/** What rlv reads of a model's repository: config, tokenizer, templates and safetensors, not other frameworks' copies. */
export const modelFiles: Include = (path) =>
  /^[^/]+\.(json|jinja|safetensors|model)$/.test(path)
    ? !path.startsWith("consolidated")
    : /^(merges|vocab)\.txt$/.test(path) || /^(additional_)?chat_templates\/[^/]+\.jinja$/.test(path);

/** What rlv reads of a dataset's repository: its rows. */
export const datasetFiles: Include = (path) =>
  ROW_FILES.some((ending) => path.endsWith(ending)) && !path.startsWith("red-team-attempts/");
