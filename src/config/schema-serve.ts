import * as z from "zod";
import { field, int, orNone, text } from "./fields.ts";
import { deviceShape } from "./schema-common.ts";

/** The server of a page. */
export const pageShape = {
  port: field(
    orNone(int(0, 65535)),
    null,
    "port to listen on; 0 = any free one, none = 8420 or the next free one",
  ),
  host: field(
    text(),
    "127.0.0.1",
    "address to listen on; any but this machine's own lets others of the network ask, who need the token all the same",
  ),
  no_open: field(z.boolean(), false, "do not open a browser; one is opened on a desktop's terminal alone"),
};

export const contextShape = {
  max_length: field(
    int(16),
    8192,
    "longest conversation in tokens, at most the model's context; its key-value cache is reserved",
  ),
};

/** Device and type are those of the chat. */
export const serveSchema = z.strictObject({ ...pageShape, ...contextShape, ...deviceShape });
export type ServeOptions = Readonly<z.output<typeof serveSchema>>;
