import { describe, expect, test } from "bun:test";
import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { RlvError } from "../../src/core/errors.ts";
import {
  AtomicFile,
  copyFileAtomic,
  fileError,
  fsyncDir,
  fsyncFile,
  readFully,
  removeTree,
  setFullSync,
  writeFileAtomic,
  writeFully,
} from "../../src/io/atomic.ts";
import { noSmallDisk, SmallDisk, smallDiskNote } from "./small-disk.ts";
import { errorOf, TemporaryFolder } from "./temporary.ts";

describe("atomic files", () => {
  test("content appears under the name at commit alone, and nothing else is left", () => {
    using folder = new TemporaryFolder();
    const path = folder.file("x");
    writeFileAtomic(path, "old");
    using file = new AtomicFile(path);
    file.write(Buffer.from("ne"));
    file.write(Buffer.from("w"));
    expect(file.length).toBe(3);
    expect(readFileSync(path, "utf8")).toBe("old");
    file.commit();
    expect(readFileSync(path, "utf8")).toBe("new");
    expect(readdirSync(folder.path)).toEqual(["x"]);
  });

  test("leaving the scope without commit keeps the old file and removes the temporary one", () => {
    using folder = new TemporaryFolder();
    const path = folder.file("x");
    writeFileAtomic(path, "old");
    expect(() => {
      using file = new AtomicFile(path);
      file.write(Buffer.from("half"));
      throw new Error("stop");
    }).toThrow("stop");
    expect(readFileSync(path, "utf8")).toBe("old");
    expect(readdirSync(folder.path)).toEqual(["x"]);
  });

  test("a folder in the way, no folder: an RlvError that names the file, nothing left behind", () => {
    using folder = new TemporaryFolder();
    mkdirSync(folder.file("dir"));
    const error = errorOf(() => writeFileAtomic(folder.file("dir"), "x"));
    expect(error).toBeInstanceOf(RlvError);
    expect(error.message).toContain(folder.file("dir"));
    expect(readdirSync(folder.path)).toEqual(["dir"]);
    expect(() => writeFileAtomic(folder.file("none/x"), "x")).toThrow(/no such file or folder/);
  });

  test("the sync that was installed is the one used: file, then folder", () => {
    using folder = new TemporaryFolder();
    const events: string[] = [];
    setFullSync((fd) => {
      events.push(existsSync(folder.file("x")) ? "after rename" : "before rename");
      fsyncSync(fd);
    });
    try {
      writeFileAtomic(folder.file("x"), "x");
      expect(events).toEqual(["before rename", "after rename"]);
      fsyncFile(folder.file("x"));
      fsyncDir(folder.path);
      expect(events.length).toBe(4);
      setFullSync(() => {
        throw Object.assign(new Error("EIO"), { code: "EIO" });
      });
      expect(() => writeFileAtomic(folder.file("y"), "y")).toThrow(/cannot sync.*y/);
    } finally {
      setFullSync(fsyncSync);
    }
    expect(readdirSync(folder.path)).toEqual(["x"]);
  });

  test("a copy follows links", () => {
    using folder = new TemporaryFolder();
    const bytes = Buffer.alloc(5_000_000, "abc");
    writeFileSync(folder.file("blob"), bytes);
    symlinkSync("blob", folder.file("link"));
    copyFileAtomic(folder.file("link"), folder.file("copy"));
    expect(Buffer.compare(readFileSync(folder.file("copy")), bytes)).toBe(0);
    writeFileSync(folder.file("empty"), "");
    copyFileAtomic(folder.file("empty"), folder.file("empty copy"));
    expect(readFileSync(folder.file("empty copy")).length).toBe(0);
    expect(() => copyFileAtomic(folder.file("none"), folder.file("z"))).toThrow(/cannot read.*none/);
  });
});

describe("whole reads and writes", () => {
  test("larger than one transfer, at positions", () => {
    using folder = new TemporaryFolder();
    const path = folder.file("big");
    const data = new Uint8Array(64 * 1024 * 1024 + 5);
    data[0] = 1;
    data[data.length - 1] = 2;
    const fd = openSync(path, "w+");
    try {
      writeFully(fd, data, path, 3);
      const back = new Uint8Array(data.length);
      readFully(fd, back, 3, path);
      expect(Buffer.compare(back, data)).toBe(0);
      expect(() => readFully(fd, new Uint8Array(8), data.length, path)).toThrow(/file ends early/);
    } finally {
      closeSync(fd);
    }
  });

  test.skipIf(!existsSync("/dev/full"))("a device without room: disk full", () => {
    const fd = openSync("/dev/full", "w");
    try {
      const error = errorOf(() => writeFully(fd, Buffer.from("x"), "/dev/full"));
      expect(error).toBeInstanceOf(RlvError);
      expect(error.message).toMatch(/^disk full: \/dev\/full: free some space/);
    } finally {
      closeSync(fd);
    }
  });

  test.skipIf(noSmallDisk !== null)(
    `a full disk: short writes are noticed, the old file stays${smallDiskNote}`,
    () => {
      using disk = new SmallDisk(256);
      const path = join(disk.path, "x");
      writeFileAtomic(path, "old");
      const error = errorOf(() => writeFileAtomic(path, new Uint8Array(1_000_000)));
      expect(error.message).toMatch(/^disk full: .*\/x: free some space/);
      expect(readFileSync(path, "utf8")).toBe("old");
      expect(readdirSync(disk.path)).toEqual(["x"]);
      writeFileAtomic(path, new Uint8Array(100_000));
      expect(readFileSync(path).length).toBe(100_000);
    },
  );

  test("every system error becomes one line that names the file", () => {
    for (const code of [
      "ENOSPC",
      "EDQUOT",
      "EACCES",
      "EROFS",
      "ENOENT",
      "ENOTDIR",
      "EISDIR",
      "EMFILE",
      "EIO",
    ]) {
      const error = fileError(Object.assign(new Error(`${code}: x`), { code }), "write", "/a/b");
      expect(error.message).toContain("/a/b");
      expect(error.message.split(": ").length).toBeGreaterThanOrEqual(3);
    }
    const own = new RlvError("mine");
    expect(fileError(own, "write", "x")).toBe(own);
  });
});

describe("removal", () => {
  test("trees, files, links (not what they point to), and what is not there", () => {
    using folder = new TemporaryFolder();
    mkdirSync(folder.file("tree/sub"), { recursive: true });
    writeFileSync(folder.file("tree/sub/x"), "x");
    mkdirSync(folder.file("kept"));
    writeFileSync(folder.file("kept/x"), "x");
    symlinkSync("kept", folder.file("link"));
    removeTree(folder.file("tree"));
    removeTree(folder.file("link"));
    removeTree(folder.file("none"));
    expect(readdirSync(folder.path)).toEqual(["kept"]);
    expect(readdirSync(folder.file("kept"))).toEqual(["x"]);
  });
});
