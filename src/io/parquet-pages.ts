/**
 * Headers of parquet's pages, checked before hyparquet decodes what they describe: it believes their counts, and a
 * damaged one keeps it busy for ever. Thrift's compact protocol; parquet.thrift has the numbers of the fields.
 */
import type { AsyncBuffer, FileMetaData } from "hyparquet";

interface Page {
  /** Where its data begin. */
  readonly data: number;
  readonly dictionary: boolean;
  readonly uncompressedSize: number;
  readonly compressedSize: number;
  readonly values: number;
}

const DEEPEST = 8;

class Thrift {
  constructor(
    readonly view: DataView,
    public at: number,
  ) {}

  byte(): number {
    return this.view.getUint8(this.at++);
  }

  varint(): number {
    let value = 0;
    for (let shift = 0; shift < 70; shift += 7) {
      const byte = this.byte();
      value += (byte & 0x7f) * 2 ** shift;
      if (byte < 0x80) return value;
    }
    throw new Error("a number without end");
  }

  zigzag(): number {
    const value = this.varint();
    return value % 2 === 0 ? value / 2 : -(value + 1) / 2;
  }

  /** Numbers of a struct by field, those of structs in it as "FIELD.FIELD". */
  struct(into: Map<string, number>, prefix = "", depth = 0): void {
    if (depth > DEEPEST) throw new Error("nested too deeply");
    for (let id = 0; ; ) {
      const head = this.byte();
      if (head === 0) return;
      id = head >> 4 === 0 ? this.zigzag() : id + (head >> 4);
      this.#value(head & 15, into, `${prefix}${id}`, depth);
    }
  }

  #value(type: number, into: Map<string, number>, name: string, depth: number): void {
    if (type === 1 || type === 2) return;
    if (type === 3) this.at += 1;
    else if (type >= 4 && type <= 6) into.set(name, this.zigzag());
    else if (type === 7) this.at += 8;
    else if (type === 8) {
      const length = this.varint();
      this.at += length;
    } else if (type === 12) this.struct(into, `${name}.`, depth + 1);
    else throw new Error(`a page header has no type ${type}`);
  }
}

function pageAt(view: DataView, at: number): Page {
  const thrift = new Thrift(view, at);
  const fields = new Map<string, number>();
  thrift.struct(fields);
  const dictionary = fields.get("1") === 2;
  const count = (name: string) => {
    const value = fields.get(name) ?? 0;
    if (value >= 0 && value < 2 ** 31) return value;
    throw new Error(`a page header says ${value}`);
  };
  return {
    data: thrift.at,
    dictionary,
    uncompressedSize: count("2"),
    compressedSize: count("3"),
    values: dictionary ? count("7.1") : count(fields.has("8.1") ? "8.1" : "5.1"),
  };
}

/** Throws what is wrong with the pages of `columns` in row group `group`. */
export async function checkPages(
  file: AsyncBuffer,
  metadata: FileMetaData,
  group: number,
  columns: readonly string[],
): Promise<void> {
  for (const { meta_data: chunk } of metadata.row_groups[group]!.columns) {
    if (chunk === undefined || !columns.includes(chunk.path_in_schema[0]!)) continue;
    const firsts = [chunk.dictionary_page_offset, chunk.data_page_offset].filter((offset) => offset);
    const begin = Math.min(...firsts.map(Number));
    const size = Number(chunk.total_compressed_size);
    if (!(begin >= 0 && size >= 0 && begin + size <= file.byteLength))
      throw new Error(`column ${chunk.path_in_schema.join(".")} lies outside the file`);
    const view = new DataView(await file.slice(begin, begin + size));
    let left = Number(chunk.num_values);
    for (let at = 0; left > 0 && at < size - 1; ) {
      const page = pageAt(view, at);
      at = page.data + page.compressedSize;
      if (!page.dictionary) left -= page.values;
      // No value of a dictionary takes less than a byte.
      const tooMany = page.dictionary ? page.values > page.uncompressedSize : left < 0;
      if (at > size || tooMany)
        throw new Error(`a page of column ${chunk.path_in_schema.join(".")} is not what its header says`);
    }
  }
}
