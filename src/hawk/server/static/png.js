// The text that a PNG file carries (tEXt and iTXt without compression), as Hawk writes it.

/** The text entries of a PNG file by their keyword; throws an Error where the bytes are no whole PNG file. */
export function textOf(buffer) {
  const bytes = new Uint8Array(buffer), view = new DataView(buffer), found = {};
  const signature = [137, 80, 78, 71, 13, 10, 26, 10];
  if (bytes.length < 8 || signature.some((byte, i) => bytes[i] !== byte)) throw new Error("This file is no PNG image.");
  for (let at = 8; at + 12 <= bytes.length; ) {
    const length = view.getUint32(at), start = at + 8, end = start + length;
    if (end + 4 > bytes.length) break; // cut off in the middle of a part
    const kind = String.fromCharCode(...bytes.subarray(at + 4, start));
    const content = bytes.subarray(start, end), split = content.indexOf(0);
    if (kind === "tEXt" && split > 0) {
      found[latin(content.subarray(0, split))] = latin(content.subarray(split + 1));
    } else if (kind === "iTXt" && split > 0 && content[split + 1] === 0) {
      const language = content.indexOf(0, split + 3), translated = content.indexOf(0, language + 1);
      found[latin(content.subarray(0, split))] = new TextDecoder().decode(content.subarray(translated + 1));
    } else if (kind === "IEND") return found;
    at = end + 4;
  }
  throw new Error("This PNG file is cut off: its end is missing. Copy or download it again.");
}

function latin(bytes) {
  return new TextDecoder("latin1").decode(bytes);
}
