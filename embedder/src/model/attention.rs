//! Self-attention over texts that lie one behind another without padding: each text attends to itself alone.
//!
//! On the CPU it is an op of our own. On any other device candle's functions do it, for which the texts are padded to the
//! longest of a group of like lengths: inside of attention alone, where it costs the least. The scores of long texts, which grow with
//! the square of the length, are computed for some rows after the others.

use std::ops::Range;
use std::sync::{Mutex, OnceLock, PoisonError};

use candle_core::{CpuStorage, DType, Device, Layout, Result, Shape, Tensor};

use super::device::has_own_kernels;
pub(super) use super::kernels::Reach;
use super::kernels::{self, Heads, Microkernel, Strided};
use super::precision::Place;
use super::tokens::Input;

/// A group is padded by at most this part of its tokens: 1/8.
const PADDING: usize = 8;

/// The most scores that are there at once, of all heads and texts of a block: 64 MiB.
const SCORES: usize = 1 << 24;

/// The most bytes that candle's functions take for scores at once: three times these, and their masks, of which a model has two where
/// its layers differ in their reach.
pub(super) const MOST_BYTES: u64 = 5 * 4 * SCORES as u64;

/// Texts that lie one behind another.
pub(super) struct Texts {
    /// Tokens of each.
    pub(super) lengths: Vec<usize>,
    /// How many of these, from the first on, are attended to.
    seen: Vec<usize>,
    /// What candle's functions need of the texts, the same in every layer.
    arranged: OnceLock<Arranged>,
}

impl Texts {
    pub(super) fn of(inputs: &[&Input]) -> Self {
        let lengths = inputs.iter().map(|input| input.len()).collect();
        Self::new(lengths, inputs.iter().map(|input| input.len() - input.unseen).collect())
    }

    fn new(lengths: Vec<usize>, seen: Vec<usize>) -> Self {
        Self { lengths, seen, arranged: OnceLock::new() }
    }

    fn arranged(&self, device: &Device) -> Result<&Arranged> {
        if let Some(arranged) = self.arranged.get() {
            return Ok(arranged);
        }
        let arranged = Arranged::new(&self.lengths, &self.seen, device)?;
        Ok(self.arranged.get_or_init(|| arranged))
    }
}

/// Texts in groups that are computed together, on a device.
struct Arranged {
    groups: Vec<(Group, Tensor)>,
    /// Where each token's row is, once the outputs of all groups are one behind another.
    places: Tensor,
    /// What is added to the scores of each group, by what layers differ in; for what is small enough to be kept.
    masks: Mutex<Vec<(Heads, Vec<Tensor>)>>,
}

impl Arranged {
    fn new(lengths: &[usize], seen: &[usize], device: &Device) -> Result<Self> {
        let mut places = vec![0_u32; lengths.iter().sum()];
        let (mut next, mut arranged) = (0, Vec::new());
        for group in groups(lengths, seen) {
            let Group { texts, longest } = &group;
            let mut rows = Vec::with_capacity(texts.len() * longest);
            for Text { start, length, .. } in texts {
                for position in 0..*longest {
                    // Padding repeats the text's last token; the mask leaves it out.
                    rows.push(number(start + position.min(length - 1))?);
                }
                for position in 0..*length {
                    places[start + position] = number(next + position)?;
                }
                next += longest;
            }
            let rows = Tensor::new(rows, device)?;
            arranged.push((group, rows));
        }
        Ok(Self { groups: arranged, places: Tensor::new(places, device)?, masks: Mutex::default() })
    }

    /// What is added to the scores of each group: [texts, 1 or heads, 1 or longest, longest]. Layers share it, unless it is more than
    /// `most` numbers.
    fn masks(&self, heads: &Heads, most: usize) -> Result<Option<Vec<Tensor>>> {
        let rows = |group: &Group| different(heads, 0..group.longest);
        let numbers =
            |group: &Group| group.texts.len() * heads.slopes.len().max(1) * rows(group).len() * group.longest;
        if self.groups.iter().map(|(group, _)| numbers(group)).sum::<usize>() > most {
            return Ok(None);
        }
        let mut masks = self.masks.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |other: &Heads| other.reach == heads.reach && other.slopes == heads.slopes;
        if let Some((_, found)) = masks.iter().find(|(other, _)| same(other)) {
            return Ok(Some(found.clone()));
        }
        let device = self.places.device();
        let made = |(group, _): &(Group, Tensor)| mask(heads, group, &rows(group), device);
        let made = self.groups.iter().map(made).collect::<Result<Vec<_>>>()?;
        masks.push((heads.clone(), made.clone()));
        Ok(Some(made))
    }
}

fn number(position: usize) -> Result<u32> {
    u32::try_from(position).map_err(candle_core::Error::wrap)
}

/// Those of `rows` whose masks differ: where every token attends to the same ones, one row does for all.
fn different(heads: &Heads, rows: Range<usize>) -> Range<usize> {
    if heads.reach == Reach::All && heads.slopes.is_empty() { 0..1 } else { rows }
}

/// What is added to the scores of some rows of a group: [texts, 1 or heads, rows, longest]. The device makes it, because it is as large
/// as the scores of a head, and made anew in every layer where it is not kept.
fn mask(heads: &Heads, group: &Group, rows: &Range<usize>, device: &Device) -> Result<Tensor> {
    let Group { texts, longest } = group;
    let (mut starts, mut ends) = (Vec::new(), Vec::new());
    for Text { length, seen, .. } in texts {
        for row in rows.clone() {
            // The rows of padding attend to something, so that their softmax is a number; nobody reads it.
            let reach = heads.reach.range(row.min(length - 1), *length);
            let range = reach.start..reach.end.min(*seen);
            // As transformers has it: who would see nothing sees all within reach.
            let range = if range.is_empty() { reach } else { range };
            starts.push(number(range.start)?);
            ends.push(number(range.end)?);
        }
    }
    let bounds = |places: Vec<u32>| Tensor::from_vec(places, (texts.len(), 1, rows.len(), 1), device);
    let columns = Tensor::arange(0, number(*longest)?, device)?;
    let attended = columns.broadcast_ge(&bounds(starts)?)?.mul(&columns.broadcast_lt(&bounds(ends)?)?)?;
    let costs = if heads.slopes.is_empty() {
        Tensor::new(0_f32, device)?
    } else {
        let slopes: Vec<f32> = heads.slopes.iter().map(|slope| -slope).collect();
        let slopes = Tensor::from_vec(slopes, (heads.slopes.len(), 1, 1), device)?;
        let rows =
            Tensor::arange(number(rows.start)?, number(rows.end)?, device)?.reshape((rows.len(), 1))?;
        let distances = rows.to_dtype(DType::F32)?.broadcast_sub(&columns.to_dtype(DType::F32)?)?.abs()?;
        slopes.broadcast_mul(&distances)?
    };
    let shape = (texts.len(), heads.slopes.len().max(1), rows.len(), *longest);
    let nothing = Tensor::new(f32::NEG_INFINITY, device)?.broadcast_as(shape)?;
    attended.broadcast_as(shape)?.where_cond(&costs.broadcast_as(shape)?, &nothing)
}

/// The attention of one layer.
pub(super) struct Attention {
    heads: Heads,
    microkernel: Microkernel,
}

impl Attention {
    /// As many heads of keys and values as of queries, `width` numbers each, scaled by `1 / sqrt(width)`; attends to the whole text.
    pub(super) fn new(heads: usize, width: usize, place: &Place) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "the width of a head is a small number")]
        let scale = 1.0 / (width as f32).sqrt();
        let heads =
            Heads { queries: heads, keys: heads, width, scale, reach: Reach::All, slopes: Vec::new() };
        Self { heads, microkernel: place.attention_microkernel }
    }

    /// Fewer heads of keys and values, which neighboring heads of queries share.
    pub(super) fn with_key_heads(mut self, keys: usize) -> Self {
        self.heads.keys = keys;
        self
    }

    /// Another scale.
    pub(super) fn with_scale(mut self, scale: f32) -> Self {
        self.heads.scale = scale;
        self
    }

    /// Which tokens a token attends to.
    pub(super) fn with_reach(mut self, reach: Reach) -> Self {
        self.heads.reach = reach;
        self
    }

    /// What each token of distance costs, a number for each head of queries (ALiBi).
    pub(super) fn with_slopes(mut self, slopes: Vec<f32>) -> Self {
        self.heads.slopes = slopes;
        self
    }

    /// Attention of `qkv`: [tokens, queries, keys and values side by side].
    pub(super) fn forward(&self, qkv: &Tensor, texts: &Texts) -> Result<Tensor> {
        let (queries, keys) = (self.heads.queries * self.heads.width, self.heads.keys * self.heads.width);
        self.forward_parts(
            &qkv.narrow(1, 0, queries)?,
            &qkv.narrow(1, queries, keys)?,
            &qkv.narrow(1, queries + keys, keys)?,
            texts,
        )
    }

    /// The same for queries, keys and values as three tensors of [tokens, heads · width].
    pub(super) fn forward_parts(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        texts: &Texts,
    ) -> Result<Tensor> {
        let tokens: usize = texts.lengths.iter().sum();
        for (tensor, heads) in
            [(queries, self.heads.queries), (keys, self.heads.keys), (values, self.heads.keys)]
        {
            if tensor.dims2()? != (tokens, heads * self.heads.width) {
                candle_core::bail!(
                    "attention over {tokens} tokens with {heads} heads of {} got {:?}",
                    self.heads.width,
                    tensor.shape()
                );
            }
        }
        // The kernels know no token that is not attended to; the few short queries that have some can do without them.
        if has_own_kernels(queries.device()) && texts.seen == texts.lengths {
            queries.apply_op3_no_bwd(keys, values, &Attend { attention: self, lengths: &texts.lengths })
        } else {
            self.elsewhere([queries, keys, values], texts, SCORES)
        }
    }

    /// With candle's functions, on any device, with at most so many `scores` at once.
    fn elsewhere(
        &self,
        [queries, keys, values]: [&Tensor; 3],
        texts: &Texts,
        scores: usize,
    ) -> Result<Tensor> {
        let Heads { queries: query_heads, keys: key_heads, width, .. } = self.heads;
        let device = queries.device();
        let arranged = texts.arranged(device)?;
        let masks = arranged.masks(&self.heads, scores)?;
        let mut outputs = Vec::with_capacity(arranged.groups.len());
        for (index, (group, tokens)) in arranged.groups.iter().enumerate() {
            let (texts, longest) = (group.texts.len(), group.longest);
            // [texts, heads, longest, width]
            let split = |x: &Tensor, heads: usize| {
                x.contiguous()?
                    .index_select(tokens, 0)?
                    .reshape((texts, longest, heads, width))?
                    .transpose(1, 2)?
                    .contiguous()
            };
            let queries = split(queries, query_heads)?;
            let (keys, values) = (split(keys, key_heads)?, split(values, key_heads)?);
            let block = (scores / (texts * query_heads * longest)).clamp(1, longest);
            let mut blocks = Vec::with_capacity(longest.div_ceil(block));
            for start in (0..longest).step_by(block) {
                let count = block.min(longest - start);
                let rows = different(&self.heads, start..start + count);
                let mask = match &masks {
                    Some(masks) => masks[index].narrow(2, rows.start, rows.len())?,
                    None => mask(&self.heads, group, &rows, device)?,
                };
                blocks.push(self.block(&queries.narrow(2, start, count)?, &keys, &values, &mask)?);
            }
            let output = Tensor::cat(&blocks, 2)?.transpose(1, 2)?;
            outputs.push(output.reshape((texts * longest, query_heads * width))?);
        }
        Tensor::cat(&outputs, 0)?.index_select(&arranged.places, 0)
    }

    /// What some rows of queries give, [texts, heads, rows, width], in the same shape.
    fn block(&self, queries: &Tensor, keys: &Tensor, values: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let (texts, query_heads, rows, width) = queries.dims4()?;
        let (_, key_heads, longest, _) = keys.dims4()?;
        // The rows of all heads of queries that share a head of keys are those of one matrix.
        let shared = query_heads / key_heads * rows;
        let scores = queries.reshape((texts, key_heads, shared, width))?.matmul(&keys.t()?)?;
        let scores = (scores * f64::from(self.heads.scale))?.reshape((texts, query_heads, rows, longest))?;
        // Sums of exponentials need more digits than 16 bits have.
        let scores = scores.to_dtype(DType::F32)?.broadcast_add(mask)?;
        let weights = candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(values.dtype())?;
        let weights = weights.reshape((texts, key_heads, shared, longest))?;
        weights.matmul(values)?.reshape((texts, query_heads, rows, width))
    }
}

/// The slopes of ALiBi: a geometric series for a power of two of heads, and for other numbers the rest from between.
pub(super) fn slopes(heads: usize) -> Vec<f32> {
    #[expect(clippy::cast_precision_loss, reason = "heads are few")]
    let series = |count: usize| {
        let ratio = 2_f32.powf(-8.0 / count as f32);
        std::iter::successors(Some(ratio), move |slope| Some(slope * ratio)).take(count)
    };
    if heads.is_power_of_two() {
        return series(heads).collect();
    }
    let below = heads.next_power_of_two() / 2;
    series(below).chain(series(2 * below).step_by(2).take(heads - below)).collect()
}

/// Texts that are computed together.
struct Group {
    texts: Vec<Text>,
    longest: usize,
}

struct Text {
    /// Its first token among those of all texts.
    start: usize,
    length: usize,
    /// Tokens, from the first on, that are attended to.
    seen: usize,
}

/// Texts of like lengths, the longest first.
fn groups(lengths: &[usize], seen: &[usize]) -> Vec<Group> {
    let mut texts: Vec<Text> = lengths
        .iter()
        .zip(seen)
        .scan(0, |next, (length, seen)| {
            let start = *next;
            *next += length;
            Some(Text { start, length: *length, seen: *seen })
        })
        .filter(|text| text.length > 0)
        .collect();
    texts.sort_by_key(|text| std::cmp::Reverse(text.length));
    let mut groups: Vec<Group> = Vec::new();
    for text in texts {
        match groups.last_mut().filter(|group| (group.longest - text.length) * PADDING <= group.longest) {
            Some(group) => group.texts.push(text),
            None => groups.push(Group { longest: text.length, texts: vec![text] }),
        }
    }
    groups
}

/// Positions that attention on `device` computes for texts of `lengths` tokens beyond their tokens.
pub(super) fn padding(lengths: &[usize], device: &Device) -> usize {
    if has_own_kernels(device) {
        return 0;
    }
    let padded = |group: &Group| group.texts.iter().map(|text| group.longest - text.length).sum::<usize>();
    groups(lengths, lengths).iter().map(padded).sum()
}

struct Attend<'a> {
    attention: &'a Attention,
    lengths: &'a [usize],
}

impl candle_core::CustomOp3 for Attend<'_> {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        queries: &CpuStorage,
        queries_layout: &Layout,
        keys: &CpuStorage,
        keys_layout: &Layout,
        values: &CpuStorage,
        values_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let Attention { heads, microkernel } = self.attention;
        let parts =
            [strided(queries, queries_layout)?, strided(keys, keys_layout)?, strided(values, values_layout)?];
        let output = kernels::attend(*microkernel, parts, self.lengths, heads);
        let tokens = self.lengths.iter().sum::<usize>();
        Ok((CpuStorage::F32(output), Shape::from((tokens, heads.queries * heads.width))))
    }
}

/// A matrix whose rows are contiguous: whole, or some columns of a wider one.
fn strided<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<Strided<'a>> {
    match (storage, layout.stride()) {
        (CpuStorage::F32(values), [row, 1]) => {
            Ok(Strided { values: &values[layout.start_offset()..], row: *row })
        }
        _ => candle_core::bail!("attention wants rows of f32"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::precision::Precision;

    #[test]
    fn slopes_are_those_of_the_paper() {
        assert_eq!(slopes(8), [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015_625, 0.007_812_5, 0.003_906_25]);
        let twelve = slopes(12);
        assert_eq!(twelve.len(), 12);
        for (found, expected) in twelve[8..].iter().zip([0.5, 1.5, 2.5, 3.5].map(|n: f32| 2_f32.powf(-n))) {
            assert!((found - expected).abs() < 1e-6, "{found} instead of {expected}");
        }
    }

    #[test]
    fn candle_s_functions_give_what_the_kernels_give() {
        let place = Place::new(Device::Cpu, Precision::F32).unwrap();
        let (heads, keys, width) = (4, 2, 8);
        let lengths = [1, 70, 0, 64, 150];
        let tokens: usize = lengths.iter().sum();
        let qkv = Tensor::randn(0_f32, 1.0, (tokens, (heads + 2 * keys) * width), &Device::Cpu).unwrap();
        let part = |start, count| qkv.narrow(1, start * width, count * width).unwrap();
        // The layers of a model share it, and differ in their reach.
        let texts = Texts::new(lengths.to_vec(), lengths.to_vec());
        for (reach, slopes) in [
            (Reach::All, Vec::new()),
            (Reach::All, slopes(heads)),
            (Reach::Before, Vec::new()),
            (Reach::Within(5), Vec::new()),
            (Reach::Window(9), Vec::new()),
        ] {
            let attention = Attention::new(heads, width, &place)
                .with_key_heads(keys)
                .with_scale(0.3)
                .with_reach(reach)
                .with_slopes(slopes);
            let own = attention.forward(&qkv, &texts).unwrap();
            let parts = [part(0, heads), part(heads, keys), part(heads + keys, keys)];
            // All rows at once, a few, and each for itself.
            for scores in [SCORES, 2000, 1] {
                let general = attention.elsewhere(parts.each_ref(), &texts, scores).unwrap();
                let off = (&own - &general).unwrap().abs().unwrap().max_all().unwrap();
                let off = off.to_scalar::<f32>().unwrap();
                assert!(off < 1e-5, "{reach:?}, {scores} scores at once: off by {off}");
            }
        }
    }

    #[test]
    fn texts_of_like_lengths_are_padded_together_and_no_others() {
        let lengths = [100, 8, 95, 0, 7, 88, 87];
        let sizes: Vec<(usize, usize)> =
            groups(&lengths, &lengths).iter().map(|group| (group.longest, group.texts.len())).collect();
        assert_eq!(sizes, [(100, 3), (87, 1), (8, 2)]);
    }
}
