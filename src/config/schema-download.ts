import * as z from "zod";
import { field, orNone, text } from "./fields.ts";

export const downloadSchema = z.strictObject({
  revision: field(text(), "main", "branch, tag or commit"),
  repo_type: field(z.enum(["model", "dataset"]), "model", "what the repository holds"),
  include: field(
    orNone(text()),
    null,
    "only files that match one of these patterns, separated by commas; * also matches /",
  ),
});
export type DownloadOptions = Readonly<z.output<typeof downloadSchema>>;
