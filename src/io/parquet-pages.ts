/**
 * Pages of parquet, checked before hyparquet decodes them: it believes every count, so that a few damaged bytes keep it
 * busy for ever or take all memory. Headers and levels are read by its own functions, which makes both see the same.
 * https://parquet.apache.org/docs/file-format/data-pages/encodings/ has the encodings.
 */
import type { AsyncBuffer, ColumnMetaData, Compressors, FileMetaData, PageHeader } from "hyparquet";
import { parquetHeader } from "hyparquet/src/column.js";
import { decompressPage } from "hyparquet/src/datapage.js";
import { deltaBinaryUnpack } from "hyparquet/src/delta.js";
import { readRleBitPackedHybrid } from "hyparquet/src/encoding.js";
import { getMaxDefinitionLevel, getMaxRepetitionLevel, getSchemaPath } from "hyparquet/src/schema.js";
import { readVarInt } from "hyparquet/src/thrift.js";
import { shown } from "../core/errors.ts";

/** A run of one value takes a few bytes however long it is: what a file may say for each of its bytes, and any file. */
const VALUES_PER_BYTE = 64;
const VALUES = 1 << 20;
/** Bytes that one byte may be decompressed to (Deflate reaches 1032), and any file. */
const EXPANSION = 1100;
const EXPANDED = 1 << 28;
/** Values that a last bit-packed run may be padded with; the format needs 7. */
const PADDING = 1 << 10;
/** The format wants blocks of a multiple of 128 values; writers take 128 to 2048. */
const DELTA_BLOCK = 1 << 16;

interface Reader {
  readonly view: DataView<ArrayBuffer>;
  offset: number;
}

interface Levels {
  readonly repetition: number;
  readonly definition: number;
}

function demand(holds: boolean, fault: string): asserts holds {
  if (!holds) throw new Error(fault);
}

/** A field of a header, where anything may stand. */
function countOf(value: unknown, what: string): number {
  demand(Number.isSafeInteger(value) && (value as number) >= 0, `its number of ${what} is none`);
  return value as number;
}

const readerOf = (bytes: Uint8Array): Reader => ({
  view: new DataView(bytes.buffer as ArrayBuffer, bytes.byteOffset, bytes.byteLength),
  offset: 0,
});

/** Checks the row groups of one file, which share what the file may unfold to. */
export class PageCheck {
  #values: number;
  #bytes: number;

  constructor(
    readonly file: AsyncBuffer,
    readonly metadata: FileMetaData,
    readonly compressors: Compressors,
  ) {
    this.#values = VALUES + VALUES_PER_BYTE * file.byteLength;
    this.#bytes = EXPANDED + EXPANSION * file.byteLength;
  }

  /** Throws what is wrong with the pages of `columns` in row group `index`. */
  async group(index: number, columns: readonly string[]): Promise<void> {
    const group = this.metadata.row_groups[index]!;
    const rows = Number(group.num_rows);
    for (const { meta_data: chunk } of group.columns) {
      if (chunk === undefined || !columns.includes(chunk.path_in_schema[0]!)) continue;
      const column = shown(chunk.path_in_schema.join("."));
      const begin = Number(chunk.dictionary_page_offset || chunk.data_page_offset);
      const size = Number(chunk.total_compressed_size);
      const inside = begin >= 0 && size >= 0 && begin + size <= this.file.byteLength;
      demand(inside, `column ${column} lies outside the file`);
      try {
        this.#chunk(await this.file.slice(begin, begin + size), chunk, rows);
      } catch (error) {
        throw new Error(`a page of column ${column}: ${(error as Error).message}`);
      }
    }
  }

  #chunk(buffer: ArrayBuffer, chunk: ColumnMetaData, rows: number): void {
    const path = getSchemaPath(this.metadata.schema, chunk.path_in_schema);
    const levels = { repetition: getMaxRepetitionLevel(path), definition: getMaxDefinitionLevel(path) };
    const valuesOfChunk = Number(chunk.num_values);
    // A list has a value for each of its items, and one where it is empty.
    const whole = levels.repetition > 0 ? valuesOfChunk >= rows : valuesOfChunk === rows;
    demand(rows >= 0 && whole, `${valuesOfChunk} values for ${rows} rows`);
    this.spendValues(valuesOfChunk);
    const reader = readerOf(new Uint8Array(buffer));
    const length = reader.view.byteLength;
    let left = valuesOfChunk;
    // Where hyparquet ends: of flat columns with the last row, of lists with the last byte.
    while ((left > 0 || levels.repetition > 0) && reader.offset < length - 1) {
      const header = parquetHeader(reader);
      const size = countOf(header.compressed_page_size, "bytes");
      demand(reader.offset + size <= length, "it ends behind its column");
      this.#spendBytes(countOf(header.uncompressed_page_size, "unpacked bytes"));
      const bytes = new Uint8Array(buffer, reader.offset, size);
      reader.offset += size;
      left -= this.#page(bytes, header, chunk, levels, path.at(-1)?.element.type_length ?? 0);
      demand(left >= 0, "it has more values than its column");
    }
    demand(left === 0, `${left} of ${valuesOfChunk} values are missing`);
  }

  /** How many values of the column it has. */
  #page(
    bytes: Uint8Array,
    header: PageHeader,
    { type, codec }: ColumnMetaData,
    levels: Levels,
    typeLength: number,
  ): number {
    const { uncompressed_page_size: unpacked, dictionary_page_header: dictionary } = header;
    const { data_page_header: first, data_page_header_v2: second } = header;
    const unpack = (packed: Uint8Array, size: number) =>
      readerOf(decompressPage(packed, size, codec, this.compressors));
    if (header.type === "DICTIONARY_PAGE" && dictionary) {
      // None of its values takes less than a byte.
      const values = countOf(dictionary.num_values, "values");
      demand(values <= unpacked, `a dictionary of ${values} values in ${unpacked} bytes`);
      return 0;
    }
    if (header.type === "DATA_PAGE" && first) {
      const values = countOf(first.num_values, "values");
      const reader = unpack(bytes, unpacked);
      readLevels(reader, levels.repetition, values);
      const present = readLevels(reader, levels.definition, values);
      this.#encoded(reader, first.encoding, type, present, typeLength, false);
      return values;
    }
    if (header.type === "DATA_PAGE_V2" && second) {
      const values = countOf(second.num_values, "values");
      const nulls = countOf(second.num_nulls, "nulls");
      const repetition = countOf(second.repetition_levels_byte_length, "bytes of repetition levels");
      const definition = countOf(second.definition_levels_byte_length, "bytes of definition levels");
      demand(nulls <= values, `${nulls} of ${values} values are null`);
      const ofLevels = repetition + definition;
      demand(ofLevels <= Math.min(bytes.length, unpacked), `${ofLevels} bytes of levels in ${bytes.length}`);
      const reader = readerOf(bytes);
      if (levels.repetition > 0) checkRuns(reader, widthOf(levels.repetition), values);
      reader.offset = repetition;
      if (levels.definition > 0) checkRuns(reader, widthOf(levels.definition), values);
      const rest = bytes.subarray(ofLevels);
      const data = second.is_compressed === false ? readerOf(rest) : unpack(rest, unpacked - ofLevels);
      this.#encoded(data, second.encoding, type, values - nulls, typeLength, true);
      return values;
    }
    throw new Error(`it is of type ${header.type}`);
  }

  /** `values` of one page, after their levels. */
  #encoded(
    reader: Reader,
    encoding: string,
    type: string,
    values: number,
    typeLength: number,
    second: boolean,
  ): void {
    switch (encoding) {
      case "PLAIN_DICTIONARY":
      case "RLE_DICTIONARY":
      case "RLE": {
        const flags = second ? encoding === "RLE" : type === "BOOLEAN";
        const width = flags ? 1 : reader.view.getUint8(reader.offset++);
        // Booleans have the length of their runs before them.
        if (flags) reader.offset += 4;
        if (width > 0 || second) checkRuns(reader, width, values);
        return;
      }
      case "BYTE_STREAM_SPLIT":
        demand(
          values * Math.max(typeLength, 1) <= reader.view.byteLength,
          `${values} values of ${typeLength}`,
        );
        return;
      case "DELTA_BINARY_PACKED":
      case "DELTA_LENGTH_BYTE_ARRAY":
        checkDelta(reader, values);
        return;
      case "DELTA_BYTE_ARRAY": {
        const prefixes = unpackDelta(reader, values);
        const suffixes = unpackDelta(reader, values);
        let before = 0;
        let total = 0;
        prefixes.forEach((prefix, i) => {
          const suffix = suffixes[i]!;
          demand(
            prefix >= 0 && prefix <= before && suffix >= 0,
            `a prefix of ${prefix} bytes after ${before}`,
          );
          before = prefix + suffix;
          total += before;
        });
        this.#spendBytes(total);
      }
    }
  }

  /** Takes `values` from what the file may have. */
  spendValues(values: number): void {
    this.#values -= values;
    demand(this.#values >= 0, `${values} values in a file of ${this.file.byteLength} bytes`);
  }

  #spendBytes(bytes: number): void {
    this.#bytes -= bytes;
    demand(this.#bytes >= 0, `${bytes} bytes of a file of ${this.file.byteLength}`);
  }
}

const widthOf = (level: number): number => 32 - Math.clz32(level);

/**
 * Runs of a hybrid of run lengths and packed bits as hyparquet goes through them, until there are `values`:
 * it writes as many as a run says, however many it was asked for.
 */
function checkRuns(reader: Reader, width: number, values: number): void {
  demand(width <= 32, `a value of ${width} bits`);
  for (let seen = 0; seen < values; ) {
    const run = readVarInt(reader);
    const packed = (run & 1) === 1;
    const count = packed ? (run >>> 1) * 8 : run >>> 1;
    const most = values - seen + (packed ? PADDING : 0);
    demand(count <= most, `a run of ${count} where ${values - seen} values are left`);
    // Of packed values it takes a byte even where they have none.
    reader.offset += packed ? Math.max(1, (count / 8) * width) : (width + 7) >> 3;
    seen += count;
  }
}

/** Goes over the levels of a page of the first version; how many values have the highest. */
function readLevels(reader: Reader, highest: number, values: number): number {
  if (highest === 0) return values;
  const width = widthOf(highest);
  checkRuns({ view: reader.view, offset: reader.offset + 4 }, width, values);
  const levels = new Array<number>(values);
  readRleBitPackedHybrid(reader, width, levels);
  return levels.filter((level) => level === highest).length;
}

/** What stands before packed differences: hyparquet makes a table of as many parts as a block has. */
function checkDelta({ view, offset }: Reader, values: number): void {
  const reader = { view, offset };
  const [block, parts, count] = [readVarInt(reader), readVarInt(reader), readVarInt(reader)];
  const blocks = block > 0 && block <= DELTA_BLOCK && parts > 0 && block % parts === 0;
  demand(blocks, `${parts} parts of a block of ${block} differences`);
  demand(count === values, `${count} differences for ${values} values`);
}

function unpackDelta(reader: Reader, values: number): Int32Array {
  checkDelta(reader, values);
  const unpacked = new Int32Array(values);
  deltaBinaryUnpack(reader, values, unpacked);
  return unpacked;
}

/**
 * Throws where Snappy's elements are not those of `size` bytes: hyparquet reads lengths of 32 bits as signed and then goes
 * back by up to 2^31. https://github.com/google/snappy/blob/main/format_description.txt
 */
export function checkSnappy(data: Uint8Array, size: number): void {
  const header = { view: readerOf(data).view, offset: 0 };
  demand(readVarInt(header) >>> 0 === size, "it is not as long as its page");
  const littleEndian = (at: number, bytes: number): number => {
    let value = 0;
    for (let i = 0; i < bytes; i++) value += data[at + i]! * 2 ** (8 * i);
    return value;
  };
  let made = 0;
  for (let at = header.offset; at < data.length; ) {
    const tag = data[at++]!;
    const kind = tag & 3;
    let length = (tag >>> 2) + 1;
    if (kind === 0) {
      const bytes = Math.max(0, length - 60);
      if (bytes > 0) length = littleEndian(at, bytes) + 1;
      at += bytes + length;
    } else {
      const bytes = kind === 3 ? 4 : kind;
      const offset = kind === 1 ? (tag >>> 5) * 256 + data[at]! : littleEndian(at, bytes);
      if (kind === 1) length = ((tag >>> 2) & 7) + 4;
      demand(offset > 0 && offset <= made, "it copies from before its beginning");
      at += bytes;
    }
    made += length;
    // Where bytes are missing, lengths and offsets are no numbers.
    demand(at <= data.length && made <= size, "it ends in the middle");
  }
  demand(made === size, "bytes are missing");
}
